"""What a chat template gets of a chat with tools, for serving and training alike."""
