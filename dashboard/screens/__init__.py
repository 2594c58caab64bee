"""One script for each page; Streamlit runs them from top to bottom at every interaction.

The folder must not be called `pages`: Streamlit would take it for its older kind of app and, until somebody has opened
the start page, run the scripts without their frame and at other addresses.
"""
