"""Alembic's entry. The connection comes from `scheduler_service.store.migrations.migrate`; there is no offline mode."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_schema="carillon", transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
