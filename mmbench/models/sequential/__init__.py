"""Sequential recommenders: from the order of a user's items to the next one."""
