SELECT shop, MAX(revenue) AS best FROM shop_days WHERE revenue IS NOT NULL GROUP BY shop
