// The peers' problem in Stan: non-centred, rows split into quantified and left-censored, all in vectors.
data {
  int<lower=1> n_subjects;
  int<lower=1> n_rows;
  int<lower=1, upper=n_rows> n_quantified;
  array[n_rows] int<lower=1, upper=n_subjects> subject;
  vector[n_rows] time;
  vector[n_rows] ln_dv;
  vector[6] theta_loc;
  vector<lower=0>[6] theta_scale;
  vector<lower=0>[6] omega_scale;
  real sigma_loc;
  real<lower=0> sigma_scale;
  real<upper=1> fb_max;
}
parameters {
  vector[6] theta; // log fold expansion, tmax, cmax, alpha, fb, beta
  vector<lower=0>[6] omega;
  real<lower=0> sigma;
  matrix[n_subjects, 6] z;
}
model {
  vector[n_subjects] ln_foldx = theta[1] + omega[1] * z[, 1];
  vector[n_subjects] tmax = exp(theta[2] + omega[2] * z[, 2]);
  vector[n_subjects] ln_cmax = theta[3] + omega[3] * z[, 3];
  vector[n_subjects] alpha = exp(theta[4] + omega[4] * z[, 4]);
  vector[n_subjects] fb = fmin(exp(theta[5] + omega[5] * z[, 5]), fb_max);
  vector[n_subjects] beta = exp(theta[6] + omega[6] * z[, 6]);
  vector[n_subjects] rho = ln_foldx ./ tmax;
  vector[n_subjects] ln_rest = log1m(fb);
  vector[n_subjects] ln_fb = log(fb);
  vector[n_rows] since = time - tmax[subject];
  vector[n_rows] s = fmax(since, 0);
  vector[n_rows] ln_pred = ln_cmax[subject] + rho[subject] .* fmin(since, 0)
    + log_sum_exp(ln_rest[subject] - alpha[subject] .* s, ln_fb[subject] - beta[subject] .* s);
  theta ~ normal(theta_loc, theta_scale);
  omega ~ normal(0, omega_scale);
  sigma ~ lognormal(sigma_loc, sigma_scale);
  to_vector(z) ~ std_normal();
  ln_dv[1:n_quantified] ~ normal(ln_pred[1:n_quantified], sigma);
  if (n_quantified < n_rows) {
    target += normal_lcdf(ln_dv[(n_quantified + 1):n_rows] | ln_pred[(n_quantified + 1):n_rows], sigma);
  }
}
