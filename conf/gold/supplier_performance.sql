-- How well each supplier keeps its word: delay and share of lines on time (of those delivered), and what is sent back.
WITH today AS (
  SELECT CAST(MAX(changed_at) AS DATE) AS day FROM procurement
)
SELECT
  procurement.supplier_id,
  MAX(procurement.supplier) AS supplier,
  COUNT(*) AS lines,
  COUNT(procurement.delivered_at) AS delivered,
  SUM(IF(procurement.delivered_at IS NULL AND procurement.promised_at < today.day, 1, 0)) AS overdue,
  ROUND(AVG(DATEDIFF(procurement.delivered_at, procurement.promised_at)), 2) AS mean_delay_days,
  ROUND(AVG(IF(procurement.delivered_at <= procurement.promised_at, 1, IF(procurement.delivered_at IS NULL, NULL, 0))), 4)
    AS on_time_share,
  ROUND(SUM(procurement.qty_rejected) / NULLIF(SUM(procurement.qty_received), 0), 4) AS reject_rate,
  CAST(SUM(procurement.qty_received * procurement.unit_cost) AS DECIMAL(18, 2)) AS received_value
FROM procurement CROSS JOIN today
GROUP BY procurement.supplier_id
