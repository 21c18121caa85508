"""Adapter folders of Hugging Face PEFT: their two files, written from a model and read into one."""
