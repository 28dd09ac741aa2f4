"""The request and answer forms of the re-ranking APIs that the server speaks."""
