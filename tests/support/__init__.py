"""What tests share: helpers under standard names, with no tests in them."""
