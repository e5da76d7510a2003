"""What is wrong with an installation, found from outside: it works on a broken one, and changes nothing."""
