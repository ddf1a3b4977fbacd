"""Live streams over WebSocket: what travels, slots of sessions, the server. It needs the extra `serve`."""
