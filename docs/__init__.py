"""The documentation site: ``make docs`` builds it. Pages are Markdown; these modules make what no one types."""
