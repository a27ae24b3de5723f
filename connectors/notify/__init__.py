"""Notifications of people, through any receiver of webhooks."""
