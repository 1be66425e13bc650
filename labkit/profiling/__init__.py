"""Looks into a running application: its SQL, its functions, its lines, its memory."""
