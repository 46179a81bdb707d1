"""A result as a document, and the document on a terminal, as a page, in Markdown, CSV and JSON."""
