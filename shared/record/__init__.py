"""The record of runs in SQL: its tables, their migrations, what writes them and what asks them."""
