"""Run by Alembic: on the connection that `records.schema` hands over, or as text for a dialect."""

from alembic import context

from fastrm_monitor.records.models import Base

if context.is_offline_mode():
    context.configure(
        dialect_name=context.config.attributes["dialect"], target_metadata=Base.metadata, literal_binds=True
    )
else:
    context.configure(
        connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
    )

with context.begin_transaction():
    context.run_migrations()
