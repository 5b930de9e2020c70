"""What was measured night after night, in a database: SQLite by default, PostgreSQL by URL."""
