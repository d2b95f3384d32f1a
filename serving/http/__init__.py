"""The endpoint's HTTP side: gate, routes, streams. No Ray here."""
