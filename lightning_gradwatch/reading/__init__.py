"""What tab, page and terminal all read: schema, store, answers, words."""
