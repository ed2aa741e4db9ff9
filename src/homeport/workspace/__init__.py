"""The workspace: its tokens, its settings and what clients ask about themselves."""
