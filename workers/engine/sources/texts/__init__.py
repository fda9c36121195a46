"""Texts: files and rows to documents, documents to token ids. Streamed, so their size is not limited by memory."""
