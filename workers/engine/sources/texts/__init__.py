"""Texts as models read them: files and rows to documents, documents to token ids. Streaming, whatever their size."""
