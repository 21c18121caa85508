"""What the records say: tables, statistics, and the claims they decide. Nothing here imports torch."""
