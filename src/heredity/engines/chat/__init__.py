"""Chat templates, tool calls and streamed text: messages to tokens and back."""
