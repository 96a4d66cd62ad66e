-- What was sold on each day, by location and model; cancelled lines do not count.
SELECT
  order_date AS day,
  location,
  model,
  MAX(category) AS category,
  COUNT(DISTINCT order_id) AS orders,
  COUNT(*) AS lines,
  SUM(qty) AS units,
  CAST(SUM(qty * unit_price * (100 - discount) / 100) AS DECIMAL(18, 2)) AS revenue
FROM orders
WHERE status <> 'cancelled'
GROUP BY order_date, location, model
