-- What was bought of each vendor and how much of it was rejected.
WITH by_order AS (
  SELECT purchase_order_id, COUNT(*) AS lines, SUM(line_total) AS amount, SUM(received) AS received, SUM(rejected) AS rejected
  FROM aw_purchase_lines
  GROUP BY purchase_order_id
)
SELECT
  v.vendor_id, v.name, v.preferred,
  COUNT(o.purchase_order_id) AS orders,
  COALESCE(SUM(b.lines), 0) AS lines,
  COALESCE(SUM(o.sub_total), 0) AS ordered,
  COALESCE(SUM(b.amount), 0) AS of_lines,
  COALESCE(SUM(b.received), 0) AS received,
  COALESCE(SUM(b.rejected), 0) AS rejected
FROM aw_vendors v
LEFT JOIN aw_purchase_orders o ON o.vendor_id = v.vendor_id
LEFT JOIN by_order b ON b.purchase_order_id = o.purchase_order_id
GROUP BY v.vendor_id, v.name, v.preferred
