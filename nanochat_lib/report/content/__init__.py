"""What a report says, as plain objects: its top, its sections, its sentences, its listings."""
