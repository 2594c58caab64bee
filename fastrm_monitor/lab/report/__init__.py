"""The report of an evaluation: its finished parts on disk, its contents, its verdicts, its plots and its page."""
