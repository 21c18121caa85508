"""What the records show: tables, statistics, and verdicts on claims. Nothing here imports torch."""
