"""What frozen slots say: positions, attributes, which object a slot holds, collisions."""
