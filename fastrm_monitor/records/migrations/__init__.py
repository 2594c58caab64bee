"""The schema's history, run by `records.schema`; a package only so that it travels with the wheel."""
