"""Tests of the record in SQL, each on SQLite and on PostgreSQL."""
