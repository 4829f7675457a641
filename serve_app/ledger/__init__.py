"""The durable ledger: entries moved from Redis into a database, and what is read from there."""
