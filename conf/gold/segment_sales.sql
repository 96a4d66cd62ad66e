-- Sales by month and kind of customer, with the customer as known today.
SELECT
  TRUNC(orders.order_date, 'MM') AS month,
  COALESCE(accounts.segment, '(unknown)') AS segment,
  COUNT(DISTINCT orders.customer_id) AS customers,
  SUM(orders.qty) AS units,
  CAST(SUM(orders.qty * orders.unit_price * (100 - orders.discount) / 100) AS DECIMAL(18, 2)) AS revenue
FROM orders LEFT JOIN accounts ON accounts.account_id = orders.customer_id AND accounts.is_current
WHERE orders.status <> 'cancelled'
GROUP BY TRUNC(orders.order_date, 'MM'), COALESCE(accounts.segment, '(unknown)')
