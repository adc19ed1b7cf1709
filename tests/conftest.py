"""What all tests share: nothing that a test could not do by itself in one line."""
