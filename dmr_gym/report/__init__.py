"""One HTML page of what runs have found: read runs into records, and records into a page that needs no network."""
