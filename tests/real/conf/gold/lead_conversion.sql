-- Calls and how many came to a deposit, by what the last campaign had come to.
SELECT previous_outcome, COUNT(*) AS leads, SUM(IF(converted, 1, 0)) AS converted, COUNT(days_since_contact) AS called_before
FROM bank_leads
GROUP BY previous_outcome
