"""What strangers try: each guard has a test here that fails without it."""
