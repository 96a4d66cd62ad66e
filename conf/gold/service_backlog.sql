-- Open appointments and kept promises of each location, as of the newest event there is (not of the clock).
WITH newest AS (
  SELECT MAX(event_time) AS as_of FROM service_events
),
appointments AS (
  SELECT
    appointment_id,
    MAX(location) AS location,
    MAX(promised_by) AS promised_by,
    MAX(IF(event_type = 'arrived', event_time, NULL)) AS arrived_at,
    MAX(IF(event_type = 'finished', event_time, NULL)) AS finished_at,
    MAX(IF(event_type = 'cancelled', event_time, NULL)) AS cancelled_at
  FROM service_events
  GROUP BY appointment_id
),
judged AS (
  SELECT
    appointments.location,
    newest.as_of,
    IF(finished_at IS NULL AND cancelled_at IS NULL, 1, 0) AS open,
    IF(finished_at IS NULL AND cancelled_at IS NULL AND arrived_at IS NOT NULL, 1, 0) AS in_workshop,
    IF(finished_at IS NULL AND cancelled_at IS NULL AND promised_by < newest.as_of, 1, 0) AS overdue,
    IF(finished_at IS NOT NULL, 1, 0) AS finished,
    IF(finished_at <= promised_by, 1, 0) AS kept
  FROM appointments CROSS JOIN newest
)
SELECT
  location,
  MAX(as_of) AS as_of,
  SUM(open) AS open,
  SUM(in_workshop) AS in_workshop,
  SUM(overdue) AS overdue,
  SUM(finished) AS finished,
  ROUND(SUM(kept) / NULLIF(SUM(finished), 0), 4) AS kept_share
FROM judged
GROUP BY location
