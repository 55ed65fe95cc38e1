"""Where the teacher is: its servers, URLs, what they answer."""
