SELECT day, shop, COUNT(*) AS sales, SUM(qty * price) AS revenue FROM sales GROUP BY day, shop
