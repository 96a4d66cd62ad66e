-- Tickets of each priority and how many missed their SLA, by each ticket's last change.
WITH last_change AS (
  SELECT
    number, MAX_BY(priority, STRUCT(changes, _line)) AS priority, MAX_BY(made_sla, STRUCT(changes, _line)) AS made_sla,
    MAX_BY(closed_at, STRUCT(changes, _line)) AS closed_at, MIN(opened_at) AS opened_at, COUNT(*) AS changes
  FROM ticket_events
  GROUP BY number
)
SELECT
  priority, COUNT(*) AS tickets, SUM(IF(made_sla, 0, 1)) AS missed, SUM(changes) AS changes,
  ROUND(AVG(TIMESTAMPDIFF(HOUR, opened_at, closed_at)), 1) AS mean_hours_to_close
FROM last_change
GROUP BY priority
