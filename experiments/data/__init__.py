"""The room of data: frames of procedural heads or of folders of clips, and the pairs and batches made of them."""
