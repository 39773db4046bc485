"""Where frames come from: procedural heads, or folders of clips."""
