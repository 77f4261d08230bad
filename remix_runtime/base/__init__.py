"""The frozen base model: its folder, weights, tokenizer and chat template, read by one loader."""
