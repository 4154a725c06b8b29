"""What only a GPU can answer: is every loss right there, does nothing wait, how fast is it?"""
