"""Homes of the teacher: its servers, URLs, what they answer."""
