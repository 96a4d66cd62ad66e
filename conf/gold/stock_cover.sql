-- For how many days the newest stock lasts, at the pace of the last 28 days (or of all days, where there are fewer).
WITH latest AS (
  SELECT MAX(snapshot_date) AS day FROM stock
),
span AS (
  SELECT LEAST(28, DATEDIFF(MAX(latest.day), MIN(daily_sales.day)) + 1) AS days
  FROM daily_sales CROSS JOIN latest
  WHERE daily_sales.day <= latest.day
),
sold AS (
  SELECT daily_sales.location, daily_sales.model, SUM(daily_sales.units) AS units
  FROM daily_sales CROSS JOIN latest
  WHERE daily_sales.day > DATE_SUB(latest.day, 28) AND daily_sales.day <= latest.day
  GROUP BY daily_sales.location, daily_sales.model
)
SELECT
  stock.location,
  stock.model,
  stock.snapshot_date AS day,
  stock.on_hand - stock.reserved AS free,
  stock.in_transit,
  COALESCE(sold.units, 0) AS units_sold,
  ROUND(sold.units / span.days, 3) AS units_a_day,
  ROUND(GREATEST(stock.on_hand - stock.reserved, 0) * span.days / NULLIF(sold.units, 0), 1) AS cover_days
FROM stock
JOIN latest ON stock.snapshot_date = latest.day
CROSS JOIN span
LEFT JOIN sold ON sold.location = stock.location AND sold.model = stock.model
