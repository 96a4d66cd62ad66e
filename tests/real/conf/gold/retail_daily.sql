-- Order lines of each day by what they are.
WITH lines AS (
  SELECT
    TO_DATE(invoiced_at) AS day,
    CASE
      WHEN invoice LIKE 'C%' THEN 'cancellation'
      WHEN invoice LIKE 'A%' THEN 'bad_debt'
      WHEN quantity < 0 THEN 'write_off'
      WHEN unit_price = 0 THEN 'free'
      ELSE 'sale'
    END AS kind,
    quantity,
    unit_price,
    customer_id
  FROM online_retail
)
SELECT
  day, kind, COUNT(*) AS lines, SUM(quantity) AS units, SUM(quantity * unit_price) AS net,
  SUM(IF(customer_id IS NULL, 1, 0)) AS lines_without_customer
FROM lines
GROUP BY day, kind
