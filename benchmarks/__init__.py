"""Speed, memory and accuracy: scripts that write JSON under results/, from which the README's tables are made."""
