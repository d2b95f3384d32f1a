"""OpenAI's Responses API over the same calls as chat: requests, their way to a call, and the replies."""
