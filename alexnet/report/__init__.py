"""The report on runs: a page that needs no other file, its charts, and what they say."""
